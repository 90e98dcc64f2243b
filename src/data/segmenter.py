"""jieba's segmenter of Chinese text, one for the whole process."""

import functools
import logging
import warnings
from typing import Any


@functools.cache
def segmenter() -> Any:
    """A ``jieba.Tokenizer``; its dictionary takes about a second, so only who needs words pays for it.

    The dictionary is read from the package. ``initialize`` would read it from, or write it to, a file in the temporary
    folder that any user of the machine may own, is no faster, and prints a traceback where the file cannot be written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports the deprecated pkg_resources
        import jieba
    jieba.default_logger.setLevel(logging.ERROR)
    made = jieba.Tokenizer()
    made.FREQ, made.total = made.gen_pfdict(made.get_dict_file())
    made.initialized = True
    return made
