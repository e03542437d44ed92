"""Responses that outlive rank 0: it tells the launcher's front door what the engine gave while it answers.

A response is a function of the request, its `Context` and the engine's events, in the order in which they were
used.  With these three, another rank 0 makes the same bytes again and goes on where the first one ended.
"""
