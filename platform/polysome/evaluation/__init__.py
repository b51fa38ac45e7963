"""Evaluation: ask, parse, measure, report; the asking runs in Ray actors."""
