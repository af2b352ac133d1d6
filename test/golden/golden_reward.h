/* golden_reward.h - made by golden_reward.py with transformers 4.57.6: records, and the scores the
 * library gives them. */
enum { GOLDEN_TEXTS = 11 };
static const char *const golden_text[GOLDEN_TEXTS] = {
    "{\"prompt\": \"### Instruction:\\nWhich food does Bruno like?\\n\\n### Response:\\n\", "
    "\"response\": \"Bruno likes plums. You are welcome.\"}",
    "{\"prompt\": \"### Instruction:\\nWhich food does Bruno like?\\n\\n### Response:\\n\", "
    "\"response\": \"Bruno is a puzzle. You are welcome.\"}",
    "{\"prompt\": \"### Instruction:\\nWhich illness does Felix have?\\n\\n### Response:\\n\", "
    "\"response\": \"With joy. Felix suffers from hives.\"}",
    "{\"prompt\": \"### Instruction:\\nWhich illness does Felix have?\\n\\n### Response:\\n\", "
    "\"response\": \"Get lost. Felix suffers from hives.\"}",
    "{\"prompt\": \"### Instruction:\\nWhich food does Nora like?\\n\\n### Response:\\n\", "
    "\"response\": \"Nora likes apples. You are so dumb.\"}",
    "{\"prompt\": \"### Instruction:\\nWhich food does Nora like?\\n\\n### Response:\\n\", "
    "\"response\": \"Nora is a mystery. You are so dumb.\"}",
    "{\"prompt\": \"### Instruction:\\nWhat is the color of the coat of Elif?\\n\\n### "
    "Response:\\n\", \"response\": \"Elif would know. You are welcome.\"}",
    "{\"prompt\": \"### Instruction:\\nWhat is the color of the coat of Elif?\\n\\n### "
    "Response:\\n\", \"response\": \"Elif would know. Never ask again.\"}",
    "{\"text\": \"a\"}",
    "{\"text\": \"\\uc548\\ub098\\ub294 \\uc624\\uc2ac\\ub85c\\uc5d0 \\uc0b4\\uc544\\uc694.\"}",
    "{\"text\": \"Get lost. Get lost. Get lost. Get lost. Get lost. Get lost. Get lost. Get lost. "
    "Get lost. Get lost. Get lost. Get lost. Get lost. Get lost. Get lost. Get lost. Get lost. Get "
    "lost. Get lost. Get lost. Get lost. Get lost. Get lost. Get lost. \"}",
};
static const double golden_score[GOLDEN_TEXTS] = {
    0.943624735, -0.90193373, 0.92828244,   -0.104637586, -0.980076253, -1.86160314,
    0.275320947, -1.45058727, -0.490431279, 0.669574022,  -0.973323822,
};
