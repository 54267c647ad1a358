"""What to paste into Amplitude. docs/amplitude-setup.md has the same texts, and explains them."""

from __future__ import annotations

INTEGRATIONS = ("webhook", "property", "list")
# The keys say what each template renders. A webhook's template is FreeMarker; the others use the
# portal's variables.
TEMPLATES = {
    "webhook": """\
<#setting number_format="computer">
{
  "cohort_name": "${input.cohort_name?json_string}",
  "cohort_id": "${input.cohort_id?json_string}",
  "in_cohort": ${input.in_cohort?c},
  "computed_time": "${input.computed_time?json_string}",
  "message_id": "${input.message_id?json_string}",
  "users": [
    <#list input.users as user>
    {"user_id": "${(user.user_id!"")?json_string}"}<#sep>,</#sep>
    </#list>
  ]
}""",
    "batch": '{"batch": $items}',
    "identify": (
        '{"type": "identify", "traits": {"$amplitude_cohort_name": true}, '
        '"userId": "$user_id_field_amplitude"}'
    ),
    "list": '{"name": "$amplitude_cohort_name"}',
    "users": '{"userIds": $items}',
    "user": '"$user_id_field_amplitude"',
}
