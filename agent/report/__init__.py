"""What an investigation found, for people: the report, its page, its citations, its exports."""
