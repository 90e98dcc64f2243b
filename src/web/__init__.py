"""A page in the browser to try a trained model with.

``service`` asks the library, ``page`` lays out what visitors see, ``server`` serves it.
"""
