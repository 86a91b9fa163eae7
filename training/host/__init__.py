"""The only place of the engine that knows ComfyUI: everything that imports `comfy`, `folder_paths` or `server`."""
