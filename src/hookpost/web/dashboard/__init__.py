"""The developer dashboard: pages rendered here, for people who would rather look than read.

`site` guards and routes every request, `session` knows who has signed in, `visit` is one request of one person. Pages
live in `pages/`, one file each; they read through the same store and the same routes as the API, with the same
principal, so there is nothing that only the dashboard can see or do. `render` makes HTML: everything that others wrote
is text there. No page needs JavaScript; what there is of it is ours, and served from here.
"""
