"""The only room of the engine that imports `comfy`, `folder_paths` or `server`."""
