"""One self-contained page of what is found so far: claims, pictures, sound, and where every run is."""
