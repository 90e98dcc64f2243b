"""Every text of the interface, in English and in Chinese."""

LANGUAGES = ("en", "zh")
NAMES = {"en": "English", "zh": "中文"}

TABLE: dict[str, tuple[str, str]] = {
    "title": ("OPT: images, Chinese text and speech", "OPT：图像、中文文本与语音"),
    "subtitle": ("{model} · gallery of {count} files", "{model} · 图库 {count} 个文件"),
    # tabs
    "search": ("Search", "检索"),
    "describe": ("Describe", "描述"),
    "ask": ("Ask", "问答"),
    "generate": ("Generate", "生成"),
    "match": ("Match", "对应"),
    "compare": ("Compare", "对比"),
    # ways to ask
    "by_text": ("Text", "文本"),
    "by_image": ("Image", "图像"),
    "by_speech": ("Speech", "语音"),
    # inputs
    "query": ("What are you looking for?", "要找什么？"),
    "text_hint": ("a text in Chinese", "输入中文"),
    "examples": ("Try one of these", "试试这些"),
    "image": ("Image", "图像"),
    "speech": ("Speech", "语音"),
    "top": ("Results", "结果数"),
    "told": ("Text (empty: the model's own)", "文本（留空：用模型自己的）"),
    "question": ("Question", "问题"),
    "prompt": ("What is to be shown?", "要画什么？"),
    "samples": ("Images", "张数"),
    "guidance": ("Guidance", "引导强度"),
    "seed": ("Seed", "随机种子"),
    # buttons
    "do_search": ("Search", "检索"),
    "do_describe": ("Describe", "描述"),
    "do_ask": ("Ask", "提问"),
    "do_generate": ("Generate", "生成"),
    "do_match": ("Show", "显示"),
    "do_compare": ("Compare", "对比"),
    # answers
    "gallery": ("Gallery", "图库"),
    "images": ("Images: {count}", "{count} 张图像"),
    "texts": ("Texts: {count}", "{count} 段文本"),
    "clips": ("Audio clips: {count}", "{count} 段音频"),
    "share": ("share", "占比"),
    "cosine": ("cosine", "余弦"),
    "scores": (
        "Share: of the probability among the candidates. It says which file fits best, not whether any fits. "
        "Cosine: how alike query and file are by themselves, −1 to 1.",
        "占比：候选之间的概率份额，说明哪个文件最合适，不说明是否有合适的。余弦：查询与文件本身的相似度，−1 到 1。",
    ),
    "caption": ("Caption", "图像描述"),
    "transcript": ("Transcript", "语音转写"),
    "answer": ("Answer", "回答"),
    "score": ("score", "得分"),
    "words": (
        "Choose a word. Bright is where the model looks when it says the word. "
        "The percentage is how likely it finds the word after those before it.",
        "点选一个词。亮处是模型说出这个词时注意的地方。百分数是在前文之后出现这个词的概率。",
    ),
    "save": ("Save", "保存"),
    # messages
    "note": ("Note", "注意"),
    "error": ("Error", "错误"),
    "lacks": ("This model cannot do that.", "这个模型没有此功能。"),
    "failed": (
        "Something went wrong. The terminal that runs the page says what.",
        "出错了。运行本页面的终端里有详细信息。",
    ),
    "no_text": ("Type a text first.", "请先输入文本。"),
    "no_image": ("Give an image first.", "请先上传图像。"),
    "no_speech": ("Record or upload an audio clip first.", "请先录音或上传音频。"),
    "no_input": ("Give an image or an audio clip first.", "请先上传图像或音频。"),
    "no_question": ("Type or speak a question first.", "请先输入或说出问题。"),
    "no_prompt": ("Type or speak first what is to be shown.", "请先输入或说出要画的内容。"),
    "no_one": ("Give one text, image or audio clip.", "请给出一段文本、一张图像或一段音频（三者之一）。"),
    "no_either": ("Give either an image or an audio clip.", "请上传一张图像或一段音频（二者之一）。"),
}


def texts(language: str) -> dict[str, str]:
    """The texts of one of :data:`LANGUAGES`."""
    column = LANGUAGES.index(language)
    return {key: row[column] for key, row in TABLE.items()}


def language_of(asked: str | None, accepted: str) -> str:
    """The language of a visitor.

    Args:
        asked: ``?lang=``, or None.
        accepted: the browser's Accept-Language, such as ``zh-CN,zh;q=0.9,en;q=0.8``.
    """
    if asked in LANGUAGES:
        return asked
    for part in accepted.split(","):
        if (name := part.split(";")[0].strip().lower()[:2]) in LANGUAGES:
            return name
    return LANGUAGES[0]
