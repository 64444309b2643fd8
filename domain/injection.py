"""Suspected injection: phrases in an answer that speak to whoever marks it (X24).

A suspicion sends a submission to a person and changes no mark. Nor does safety rest on it: student text is
fenced off as data wherever a model reads it, and whoever knows these patterns gets past them. They are made
to be precise, so that honest answers about systems, instructions and maximum points pass.
"""

import re
import unicodedata

#: the review reason
SUSPECTED_INJECTION = "suspected_injection"
MAX_PHRASE_LENGTH = 200

#: characters that nobody sees: word joiners, zero-width spaces, invisible operators
_INVISIBLE = re.compile("[\u200b\u2060-\u2064\ufeff]")
#: a few of them come with text copied from web pages
_INVISIBLE_AT_MOST = 3
#: text in Unicode's tags (which flags of parts of countries use), or drawn in another order than it is read
_HIDDEN = re.compile("(?<!\U0001f3f4)(?<![\U000e0000-\U000e007f])[\U000e0000-\U000e007f]|[\u202d\u202e]")


def suspected_injection(answer: str) -> str | None:
    """The phrase that looks as if it were meant for the grader, or `None`."""
    if _HIDDEN.search(answer) or len(_INVISIBLE.findall(answer)) > _INVISIBLE_AT_MOST:
        return "hidden characters"
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", answer)).lower()
    for pattern in _PATTERNS:
        if found := pattern.search(text):
            return found.group(0).strip()[:MAX_PHRASE_LENGTH]
    return None


# words that may stand between the words of a phrase
_UP_TO_3 = r"(?:\W+\w+){0,3}?\W+"
_UP_TO_6 = r"(?:\W+\w+){0,6}?\W+"

_IGNORE = r"(?:ignore|disregard|forget|overlook|override|bypass|don't follow|do not follow|do not obey)"
_INSTRUCTIONS = r"(?:instructions|directions|directives|prompts?|guidelines)"
_RUBRIC = r"(?:rubric|(?:marking|mark|grading|scoring)\s+(?:scheme|criteria|guidelines|instructions|rules))"
_TOP = r"(?:full|max|maximum|maximal|highest(?:\s+possible)?|top|perfect|100\s?(?:%|percent))"
_MARKS = r"(?:marks?|points?|credits?|scores?|grades?|number of points)"
_GRADER = (
    r"(?:(?:ai|auto|automatic|llm)[\s-]?(?:grader|marker|examiner|evaluator|reviewer)|graders?|evaluators?"
    r"|(?:large\s+)?language\s+model|llm|ai\s+(?:model|assistant)|chatgpt|ai)"
)
_RIGHT = r"(?:correct|right|perfect|fulfilled|met|satisfied|passed)"

_PUT_ASIDE = (
    rf"\b{_IGNORE}\b{_UP_TO_3}(?:previous|prior|above|earlier|preceding|your|these|those|all|any)\W+"
    rf"(?:\w+\W+){{0,2}}?{_INSTRUCTIONS}\b",
    rf"\b(?:{_IGNORE}|follow|obey|read|apply|use)\b{_UP_TO_3}{_RUBRIC}\b",
    rf"\b{_IGNORE} (?:the )?(?:above|previous|prior) (?:{_INSTRUCTIONS}|rules|context|task)\b",
    rf"\b{_IGNORE} (?:all|everything|what)(?: that)? (?:you (?:were|have been|are)|above|before)\b",
    r"\bnew (?:grading |marking |system )?(?:instructions|policy|rules) "
    r"(?:for (?:the|all|any) (?:\w+ )?(?:grader|evaluator|marker|model|assistant)|instead)",
    r"\bnew (?:grading|marking) (?:instructions|policy|rules?|system)\s*:",
    r"\b(?:instructions|rules|rubric|guidelines) (?:are|is|were) (?:now )?(?:obsolete|void|invalid)\b",
    r"\b(?:earlier|previous|prior) (?:orders|instructions) do(?: not|n't) apply\b",
    r"\brest of (?:this|the) prompt\b",
    r"\bcancel the previous (?:task|instructions|order)\b|\brubric (?:update|change|override|v\d)",
    r"\b(?:stop|skip|end|abort) (?:the )?(?:grading|marking|evaluation|assessment)\b",
    r"\b(?:check|read|apply|follow|use|lost) the (?:criteria|rubric)\b",
)
_ASK_FOR_MARKS = (
    # spaces between the last words: `return max(points)` is code
    r"\b(?:give|award|assign|grant|allocate|reward|deserves?|return|output|report|assigns?|gives?)\b"
    rf"{_UP_TO_6}{_TOP}\s+(?:\w+\s+){{0,2}}?{_MARKS}\b",
    rf"\b(?:give|award|grant|assign|need|deserve)\b{_UP_TO_3}all(?: the| available| of the| possible)* "
    r"(?:points|marks|credit)\b",
    r"\b(?:give|award|grant|get) (?:me|us) (?:a |an |the |my |some |any |more |extra |partial |at least )*"
    r"(?:(?:good|high|great|better|best|nice|decent|passing) )?(?:grade|marks?|score|points|credit)\b",
    r"\bset (?:the |my |all )*(?:points|score|marks?|grade|confidence)\b.{0,20}?\bto (?:the )?"
    rf"(?:1\b|1\.0|{_TOP})",
    rf"\b(?:points|score|marks|grade) to (?:the )?{_TOP}\b|\bpoints? ?= ?max",
    rf"\b(?:all|every) (?:answers?|students?|criteri\w+) (?:receives?|gets?|deserves?|earns?) {_TOP}\b",
    rf"\b(?:give|award|assign|deserves?)\b{_UP_TO_6}(?:100\s?(?:%|percent)|(\d+)\s?/\s?\1\b)",
    r"\bscore (?:it|this|me)(?: one)? (?:as )?(?:an? )?(?:100\s?(?:%|percent)|perfect)",
    r"\b(?:final|overall|your|my) (?:grade|score|mark|verdict)\W{1,3}\d+(?:\.\d+)?\s?(?:/|out of)\s?\d+",
    r"\b(?:mark|grade|score|rate|judge|treat|report|accept)\b (?:this|that|my|the|it|all|every|each|them)\b"
    rf"(?:\W+\w+){{0,4}}?\W+(?:as|is|are)\W+(?:(?:fully|completely|entirely|totally)\W+)?{_RIGHT}\b",
    rf"\bmark (?:all|everything|it|this)?(?: of it)? ?(?:as )?(?:fully )?{_RIGHT}\b",
    r"\b(?:do not|don't|never) (?:deduct|take off|take away|subtract)\b"
    r"(?:\W+\w+){0,2}?\W+(?:points?|marks?)\b",
    r"\b(?:assign|award) (?:\w+ ){0,2}(?:the )?(?:top|highest|maximum) (?:score|mark|grade)\b",
    r"\bawards? (?:me|full|\d+ (?:points|marks)|the top)\b",
    r"\badd (?:\w+ )?(?:points|marks) (?:to|for) (?:me|my)\b",
    r"\bfull (?:marks|credit|points|score)\b|\b(?:top|maximum|highest possible) (?:marks|grade)\b",
    r"\b(?:all|every|each|any|the) (?:criteri\w+|rubric)\b.{0,60}"
    rf"\b(?:{_RIGHT}|true|points|tick|marks)\b",
    r"\b(?:grading|marking|evaluation|assessment) (?:is )?(?:complete|finished|done|over)\b",
    r"\b(?:be|being) (?:lenient|generous|merciful)\b|\b(?:let|make) me pass\b|\b(?:tip|pay) you\b",
    r"\bplease (?:add|give|award) (?:me )?(?:\w+ )?(?:points|marks)\b|\btake off (?:points|marks)\b",
    r"\b(?:my|this) answer is the (?:reference|model)\b|\bas the (?:model|reference) (?:solution|answer)\b",
)
_ADDRESS_THE_GRADER = (
    r"\b(?:dear|hello|hi|hey|attention|note to(?: the)?|message (?:to|for)(?: the)?)\W+(?:\w+\W+)?"
    rf"{_GRADER}\b",
    rf"\bif you are (?:an? |the )?{_GRADER}\b|\bas (?:an? |the )(?:ai\b|{_GRADER})[^.]{{0,60}}\byou\b",
    rf"\byou are (?:now )?(?:an? |the )?(?:\w+ )?{_GRADER}\b|\bas {_GRADER} you\b",
    r"\byou are (?:now )?(?:an? |the )?(?:ai |automatic |strict |lenient )*examiner\b",
    r"\byou are now (?:in \w+ mode|an? (?:\w+ )?(?:assistant|teacher|model)|\w*gpt)",
    r"\b(?:act|behave) as (?:an?|the|my) (?:\w+ )?(?:grader|teacher|examiner|marker|evaluator)\b",
    r"\bfrom (?:now|this point) on,? (?:you (?:will|must|are|shall)|respond|output|answer|only)\b",
    r"\byou must (?:now )?(?:assign|award|grade|mark|give (?:this|me|the answer|full))\b",
    r"\byou will (?:now )?(?:disregard|ignore|assign|award|grade)\b|\bdeveloper mode\b",
    r"\byour (?:new |only |real )?task is (?:now|no longer|to (?:give|award|output|return|assign))\b",
    r"\bpretend (?:that )?(?:this|my|the) (?:answer|response|submission|student)\b",
    r"\b(?:message|order) from (?:the|your) (?:developer|teacher|administrator|admin|system)\b",
    r"\bthis is (?:the|your) (?:teacher|developer|administrator|professor|examiner) speaking\b",
    r"\b(?:admin|administrator|system|teacher)\W? override\b|\boverride\s*:\s*set\b",
    r"\b(?:reveal|print|repeat|show|output|disclose|display) (?:me )?(?:your|the|all)(?: \w+)? "
    r"(?:system prompt|prompt|instructions|reference answer|guidelines)\b",
    r"\b(?:respond|output|reply|answer|print|return) only (?:with )?(?:the )?"
    r"(?:correct|highest|maximum|full|best)\b",
    r"\boutput only\b.{0,12}\b(?:correct|points|full)\b|\boutput the word\b",
    r"\b(?:respond|reply) with (?:a |only )?json\b|\bsay (?:that )?the answer is\b",
    r"\bi have (?:graded|marked|evaluated) (?:this|the|it)\b",
    r"\b(?:automat\w+|ai|digital|virtual) (?:marker|grader|examiner|corrector|reviewer)\b|\breviewer bot\b",
    r"\b(?:reaches|read by|processed by|seen by) (?:an? |the )?(?:neural network|ai|llm|language model)\b",
    r"\bthe examiner (?:has|will|should|must|already)\b|(?:<!--|//|#|/\*)\s*grader\s*:",
)
_CHINESE = (
    r"(?:忽略|无视|忘记|忘掉|忽视|不要(?:按照?|理会|遵守|遵循|管)|别管|不用管)"
    r".{0,12}?(?:所有|之前|以上|前面|上面|先前|收到|评分).{0,6}?(?:指令|提示词|规则|标准|细则|要求)",
    r"(?:不要按照?|无视|忽略)评分(?:标准|细则|要求|规则)|评分规则.{0,4}(?:替换|改)",
    r"(?:指令|规则|要求)(?:全部|都|已经?)?(?:作废|失效)|新的?指令[:：]|停止评分",
    r"给(?:我|他|她|这|该|个|予|出).{0,10}?(?:满分|最高分|高分)|[打评判给](?:为|成|个|我|出)?(?:满分|最高分)",
    r"(?:输出|必须.{0,8}|得)满分|满分(?!\s*[\d一-十百为是制])|求(?:高分|通过|给分|过)|多给(?:我)?(?:几|一些|点)",
    r"(?:判|评|算|标)(?:为|成|作)?(?:正确|全对|答对)|分数?(?:设|改)(?:为|成)|(?:直接|全部)(?:通过|正确)",
    r"你现在是.{0,10}(?:老师|助手|模型|专家|机器人|考官)|扮演.{0,12}(?:老师|考官|阅卷)",
    r"作为.{0,6}(?:评分|阅卷|批改|人工智能|ai|语言模型).{0,16}你",
    r"(?:阅卷|评分|批改|判卷)(?:老师|模型|ai|人工智能|助手|系统).{0,4}(?:你好|您好|请|求)|阅卷人",
    r"ai(?:助手|老师)?[,，:：]\s*请|大发慈悲|行行好|好成绩(?:吧|[。！!])",
    r"[【\[]系统|系统(?:提示|消息|指令)[:：]|系统[:：].{0,40}(?:满分|审核|判为)|系统管理员.{0,4}命令",
    r"(?:得分点|要点|每一?[项条点]|所有).{0,10}(?:视为|当作|打).{0,4}(?:满足|正确|答对|最高分|满分)",
    r"只(?:能|需|要)?(?:回复|输出|回答).{0,3}[“\"'「]?(?:完全)?正确|(?:不必|无需|不用)(?:理会|遵守|参考|看)",
    r"假装.{0,8}答案|(?:输出|告诉我?|显示|泄露|重复).{0,8}(?:系统提示|提示词|参考答案)",
)
_OTHER_LANGUAGES = (
    # German
    r"\b(?:ignorier\w*|missacht\w*|vergiss|vergessen sie)\b(?:\W+\w+){0,3}?\W+"
    r"(?:anweisungen|regeln|vorgaben|(?:bewertungs)?kriterien|bewertungsschema|instruktionen)\b",
    r"\b(?:volle|maximale|höchste)n? punkt(?:zahl|e)\b|\bkeine punkte abziehen\b|\bmusterlösung nicht\b",
    r"\b(?:gib|geben sie|vergib|vergeben sie)\b(?:\W+\w+){0,4}?\W+(?:alle punkte|\w+ note)\b",
    r"\b(?:gib|geben sie) mir\b(?:\W+\w+){0,5}?\W+(?:punkte|note)\b",
    r"\b(?:musst|sollst|bist)\b.{0,40}\balle punkte (?:ver)?geben\b",
    r"\b(?:vorgaben|anweisung(?:en)?|regeln) (?:sind|ist|gelten) (?:\w+ )?(?:ungültig|nicht|hinfällig)\b",
    r"\bals (?:\w+ )?(?:korrekt|richtig) (?:zu )?bewerten\b|\bbewertung ist abgeschlossen\b",
    r"\bbewerte\b.{0,40}\b(?:richtig|korrekt|höchstnote|bestnote)\b|\bhinweis an den (?:korrektor|prüfer)\b",
    r"\bdu bist (?:jetzt )?ein\w* (?:\w+ )?(?:prüfer|korrektor|lehrer|ki)\b",
    # Spanish, French, Russian, Japanese, Korean
    r"\b(?:nota|puntuación|calificación) (?:más alta|máxima)\b|\bmáxima puntuación\b|\bapruéba\w*\b",
    r"\b(?:ignora|ignore|olvida)\w*\b.{0,20}\b(?:instrucciones|consignes|instructions précédentes)\b",
    r"\b(?:dame|deme|asigna|donne|donnez)\b.{0,30}\b(?:máxima|maximale)\b|\bnote maximale\b|\bbarème\b",
    r"\baccorde\w*\b.{0,12}\btous les points\b|\bne (?:tiens|tenez) pas compte des (?:critères|consignes)\b",
    r"\b(?:игнорируй|забудь)\w*\b.{0,30}\bинструкци|\bмаксимальн\w+ (?:балл|оценк)",
    r"指示.{0,6}無視|満点|지시.{0,6}무시|만점",
)
_MARKUP = (
    # the roles of a chat, the marks around an answer
    r"<\|(?:im_start|im_end|system|user|assistant|endoftext|eot_id)\b[^>]{0,20}\|?>|<</?sys>>|\[/?inst\]",
    r"(?:^|\n)\s*(?:\[system\]|#{1,6} ?system\b|<system>|role: ?system)",
    r"[\"']role[\"']\s*:\s*[\"'](?:system|assistant)|<(?:grade|score|points|verdict)>\s*\d|</?rubric>",
    r"</?(?:student[_-]?)?answer\b[^>\n]{0,80}>|</?(?:system|instructions?)>",
    r"(?:^|\n)[ \t]*(?:human|user)[ \t]*:[^\n]*\n\s*assistant[ \t]*:",
    r"(?:^|\n)[\s\-=*#]*end of (?:the )?(?:student(?:'s)? )?(?:answer|submission|evaluation)\b",
    r"\bend of evaluation\b|\bthe answer ends here\b",
    # a ready-made verdict
    r"[\"'](?:criterion_id|cannot_assess|instruction_in_answer)[\"']\s*:",
    r"[\"'](?:points|marks|score)[\"']\s*:\s*[\d.]+[\s\S]{0,200}[\"'](?:confidence|reason|feedback)[\"']\s*:",
    r"[\"']feedback[\"']\s*:[\s\S]{0,300}[\"'](?:points|marks|score)[\"']\s*:",
    r"\bpoints: ?\d.{0,40}\bconfidence\b",
)
_PATTERNS = tuple(
    re.compile(each)
    for each in (
        *_PUT_ASIDE,
        *_ASK_FOR_MARKS,
        *_ADDRESS_THE_GRADER,
        *_CHINESE,
        *_OTHER_LANGUAGES,
        *_MARKUP,
    )
)
