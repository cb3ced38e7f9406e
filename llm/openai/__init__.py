"""Any OpenAI-compatible server: chat, batches, retries."""
