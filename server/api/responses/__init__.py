"""The Responses API: translated to a chat request, run like one, and told in its own objects and events."""
