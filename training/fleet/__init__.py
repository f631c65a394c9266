"""`mosa fleet`: many tasks, several at a time, from their images to a store."""
