"""The command line of deltamem. It holds names, options and output; the work is the library's."""
