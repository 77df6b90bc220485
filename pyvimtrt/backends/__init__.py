"""What runs engines: an object for each backend, the registry of them, and loading an engine's file.

`base` says what a backend is, `files` which kind a file is; a new backend is one module here and one line in
`registry`.
"""
