"""What a run is made of: data, networks, label rules, methods, attacks. Imports only checks and paths."""
