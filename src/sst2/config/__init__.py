"""What a run is asked to do: settings, which are the flags; command line; YAML files; variables of launchers."""
