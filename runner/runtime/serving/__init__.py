"""Servers of models by the OpenAI API: how they are started, asked, measured and ended."""
