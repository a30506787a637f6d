"""The composition root: settings, the processes and who owns them, and the command line.

Only this package knows which drivers stand behind the seams (Storage, Transport, Clock).
"""
