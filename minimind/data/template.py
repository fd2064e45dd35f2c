"""The Jinja form of `chatml.render`, saved with every run: other tools build the same prompt.

What stands in `generation` is what is trained: transformers and TRL make their mask of it. Some
texts of the tools' list are the ones that Qwen2.5's template has, which models know.
"""

from __future__ import annotations

from minimind.tokenizer.vocabulary import CALL, END_CALL, END_RESULT, END_THINK, RESULT, THINK

TOOLS_BEGIN = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
# Between these pieces stand the tags of a call, as control tokens.
TOOLS_END = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within ",
    " XML tags:\n",
    '\n{"name": <function-name>, "arguments": <args-json-object>}\n',
)

_TOOLS = f"""
{{%- set offer -%}}
{{{{ {TOOLS_BEGIN!r} }}}}
{{%- for tool in tools or [] -%}}
{{{{ ('' if loop.first else '\\n') ~ (tool | tojson) }}}}
{{%- endfor -%}}
{{{{ {f"{TOOLS_END[0]}{CALL}{END_CALL}{TOOLS_END[1]}{CALL}{TOOLS_END[2]}{END_CALL}"!r} }}}}
{{%- endset -%}}
{{%- if tools and not (messages and messages[0]['role'] == 'system') -%}}
{{{{ '<|im_start|>system\\n' ~ offer ~ '<|im_end|>\\n' }}}}
{{%- endif -%}}
"""

_LAST_USER = """
{%- set ns = namespace(last_user=-1) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
"""

_BEFORE_ANSWER = f"""
{{%- set reasoning = message['reasoning_content'] or message['reasoning'] -%}}
{{%- set reasoning = reasoning or message['thinking'] or '' -%}}
{{%- set start = content | trim -%}}
{{%- if start.startswith('{THINK}') and '{END_THINK}' in start -%}}
{{%- set reasoning = start.split('{END_THINK}')[0][{len(THINK)}:] -%}}
{{%- set content = content.split('{END_THINK}')[1:] | join('{END_THINK}') -%}}
{{%- endif -%}}
{{%- set reasoning = reasoning.strip('\\n') -%}}
{{%- set content = content.lstrip('\\n') -%}}
{{%- set text = content -%}}
{{%- set hidden = reasoning and loop.index0 < ns.last_user -%}}
{{%- if reasoning and not hidden -%}}
{{{{ '{THINK}\\n' }}}}
{{%- set content = reasoning ~ '\\n{END_THINK}\\n\\n' ~ content -%}}
{{%- else -%}}
{{{{ '{THINK}\\n\\n{END_THINK}\\n\\n' }}}}
{{%- endif -%}}
"""

_ANSWER = f"""
{{%- set said -%}}
{{{{ content }}}}
{{%- for call in message['tool_calls'] or [] -%}}
{{%- set call = call['function'] or call -%}}
{{%- if text or not loop.first -%}}{{{{ '\\n' }}}}{{%- endif -%}}
{{{{ '{CALL}\\n{{"name": ' ~ (call['name'] | tojson) ~ ', "arguments": ' }}}}
{{{{- call['arguments'] if call['arguments'] is string else call['arguments'] | tojson }}}}
{{{{- '}}\\n{END_CALL}' }}}}
{{%- endfor -%}}
{{{{ '<|im_end|>' }}}}
{{%- endset -%}}
"""

_RESULT = f"""
{{%- elif message['role'] == 'tool' -%}}
{{{{ '<|im_start|>user' if loop.first or messages[loop.index0 - 1]['role'] != 'tool' else '' }}}}
{{{{- '\\n{RESULT}\\n' ~ message['content'] ~ '\\n{END_RESULT}' }}}}
{{{{- '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1]['role'] != 'tool' else '' }}}}
"""

_OTHERS = """
{%- else -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}
{%- if tools and loop.first and message['role'] == 'system' -%}
{%- set after = message['content'].split('<tools>')[1:] | join('<tools>') -%}
{%- if '</tools>' not in after -%}
{{ '\\n\\n' ~ offer }}
{%- endif -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
"""


def chat_template(framed: bool = False, thinking: bool = False) -> str:
    """The template of a run.

    Args:
        framed: whether each answer has a <think> block.
        thinking: of a framed one, whether a prompt asks for reasoning unless it says otherwise.
    """
    answer = "{%- set content = message['content'] or '' -%}{%- set text = content -%}"
    answer += "{{ '<|im_start|>assistant\\n' }}"
    marked = "message['weight'] != 0"
    prompt = "{{ '<|im_start|>assistant\\n' }}"
    if framed:
        answer += _BEFORE_ANSWER.strip("\n")
        marked += " and not hidden"
        prompt += _default(thinking)
    parts = [
        _LAST_USER if framed else "",
        _TOOLS,
        "{%- for message in messages -%}",
        "{%- if message['role'] == 'assistant' -%}",
        answer,
        _ANSWER,
        f"{{%- if {marked} -%}}",
        "{%- generation -%}{{ said }}{%- endgeneration -%}",
        "{%- else -%}{{ said }}{%- endif -%}",
        "{{ '\\n' }}",
        _RESULT,
        _OTHERS,
        "{%- if add_generation_prompt -%}",
        prompt,
        "{%- endif -%}",
    ]
    return "\n".join(part.strip("\n") for part in parts if part)


def _default(thinking: bool) -> str:
    """What stands after the prompt's header: `enable_thinking`, or MiniMind's `open_thinking`."""
    return (
        f"{{%- set thinking_by_default = {str(thinking).lower()} -%}}"
        "{%- set on = enable_thinking if enable_thinking is boolean"
        " else open_thinking if open_thinking is boolean else thinking_by_default -%}"
        f"{{{{ '{THINK}\\n' if on else '{THINK}\\n\\n{END_THINK}\\n\\n' }}}}"
    )


CHAT_TEMPLATE = chat_template()  # of a run that isn't framed
