"""Chat templates in processes of their own: a template comes with the model, and may be wrong or worse."""
