"""What both ends of a federation share: messages, codecs, the join file, what a hospital approves."""
