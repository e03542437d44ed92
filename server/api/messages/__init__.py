"""Anthropic's Messages API: translated to a chat request, run like one, told in its own objects and events."""
