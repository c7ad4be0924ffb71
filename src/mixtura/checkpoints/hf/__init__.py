"""Hugging Face folders: read without a copy, and written."""
