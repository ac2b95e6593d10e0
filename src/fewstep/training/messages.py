"""Parser errors in one line: which key, what is wrong with it."""

import re

# Lines that tell how the parser works instead of what the user wrote.
_MACHINERY = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
    "Expected a path",
)
_CALLABLE = re.compile(r"^Type .*? expects a function or a callable class: ")
_KEY = re.compile(r'^Parser key "([^"]+)":\s*')
_PROBLEM = re.compile(r"^Problem with given class_path '[^']+':\s*")
_ECHO = re.compile(r"\.? Got value: Namespace\(.*")
_MAX_LENGTH = 300


def one_line(message: str) -> str:
    """The key and the complaint out of a message of jsonargparse, which may be many lines of nested reasons.

    A message of another form comes back as it is, in one line.
    """
    keys: list[str] = []
    complaints: list[str] = []
    given = ""
    for line in message.splitlines():
        text, before = line.strip(), ""
        if text.startswith("Given value: "):
            given = given or text.removeprefix("Given value: ")
        while text != before:  # one line may hold several layers
            before = text
            text = _PROBLEM.sub("", _CALLABLE.sub("", text.removeprefix("- ")))
            if found := _KEY.match(text):
                text = text[found.end() :]
                if not complaints:
                    keys.append(found[1])
        text = _ECHO.sub("", text)
        if text and not text.startswith(_MACHINERY):
            complaints.append(text)
    if not complaints:
        return " ".join(message.split())[:_MAX_LENGTH]
    return _told(".".join(keys), complaints, given)[:_MAX_LENGTH]


def _told(key: str, complaints: list[str], given: str) -> str:
    first = complaints[0]
    if found := re.match(r"Option '([^']+)' is not accepted", first):
        return f"unknown key {key + '.' if key else ''}{found[1]}"
    if found := re.match(r"Group '([^']+)' does not accept option '([^']+)'", first):
        return f"unknown key {key + '.' if key else ''}{found[1]}.{found[2]}"
    if found := re.match(r"Subcommand '[^']+' does not accept option '([^']+)'", first):
        return f"unknown key {found[1]}"
    if all(complaint.startswith("Expected a ") for complaint in complaints):
        # Alternatives of one key: the parser tries them all.
        wanted = " or ".join(complaint.removeprefix("Expected a ").rstrip(".") for complaint in complaints)
        wanted = re.sub(r"<class '([^']+)'>|typing\.Literal", lambda match: match[1] or "one of ", wanted)
        first = f"expected {wanted}" + (f", got {given}" if given and "Got value" not in wanted else "")
        first = first.replace(". Got value:", ", got")
    return f"{key}: {first}" if key else first
