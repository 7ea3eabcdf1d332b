"""The Python API: `import runner` gives what the modules of this room define, each imported when it is first used."""
