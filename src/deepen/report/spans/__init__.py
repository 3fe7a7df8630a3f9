"""A scan of spans as a page, as Markdown and in a terminal; computes nothing."""
