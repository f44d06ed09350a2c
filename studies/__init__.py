"""Published studies: a folder each, whose page is made from its stored tables by `python -m studies.build`."""
