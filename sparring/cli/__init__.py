"""The command line: thin, it calls the rooms. `sparring.cli.main:main` is the entry point."""
