"""The Python API: `import runner` exposes what these modules define, each imported when it is first used."""
