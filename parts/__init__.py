"""What the six files on top stand on, one subject a module. Imports run one way; see CONTRIBUTING.md."""
