"""Data: declared sources in, examples, tokens and packed rows out, on Ray Data."""
