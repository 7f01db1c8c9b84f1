"""What all rooms share: errors, types, settings, the catalog, allocation, ports, logs. Imports no other room."""
