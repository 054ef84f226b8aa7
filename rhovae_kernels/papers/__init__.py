"""The experiments of the papers: what was published beside what is true."""
