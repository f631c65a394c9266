"""The servers that `benchmarks.peers` compares this project with, each as a user of its library would write it."""
