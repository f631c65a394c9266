"""From a bundle to the graphs that are served, with proof that they are equal, and as fast as the plain backbone."""
