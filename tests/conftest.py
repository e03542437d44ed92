from __future__ import annotations

import hypothesis

# A deadline of an example is a timed assertion, and fails on a busy machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
