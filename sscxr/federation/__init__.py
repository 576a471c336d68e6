"""Shared by client and server: messages, codecs, the join file, the approval of recipes."""
