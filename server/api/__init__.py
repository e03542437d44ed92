"""The OpenAI API over one `Generator`: validation, chat templates, text, streaming.

Nothing is imported here: the launcher takes single modules, and no MLX with them.
"""
