"""Engines: what does the work on single images in place of this process and its workers."""
