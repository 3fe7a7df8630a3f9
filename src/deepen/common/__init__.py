"""Small things that every stage needs: errors, progress, settings, files, devices."""
