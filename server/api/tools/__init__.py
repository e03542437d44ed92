"""Tool calls: what a request says about them, how a model family writes them, and how its text becomes them."""
