"""The review page: a local web server on which a person looks through the masks of a run, and corrects them.

Files: `server` (socket, browser, Ctrl-C), `security` (who may ask), `app` and `requests` (HTTP), `session` (what the
page can do, without HTTP), `images` (the images of a run), `masks_in_review` (reading masks and recording changes),
`changes` (follows the log), `pictures`, `cutting` and `superpixels` (arrays), `doubt` (scores in another process), and
`static/` (the page itself).
"""
