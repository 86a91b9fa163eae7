"""The only place of the engine, and of the base model's scripts, that imports `comfy`, `folder_paths` or `server`."""
