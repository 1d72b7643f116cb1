"""Texts of different kinds, written for these tests."""

CODE = """Add a method `forget(name)` to this class.

```python
class Ledger:
    def __init__(self, limit):
        self.limit = limit
        self.entries = {}
        self.order = []

    def get(self, name):
        if name not in self.entries:
            return None
        self.order.remove(name)
        self.order.append(name)
        return self.entries[name]

    def put(self, name, value):
        if len(self.entries) >= self.limit:
            oldest = self.order.pop(0)
            del self.entries[oldest]
        self.entries[name] = value
        self.order.append(name)
```
"""
STORY = (
    "You are Mirelle, a ferrywoman who trusts nobody, least of all a stranger with clean boots. Stay in "
    'character. "So you want to cross tonight?" I ask, and put my hand on the rope. "What could you possibly '
    'offer me that I have not been offered before!" Tell me what you answer, and how your voice sounds.'
)
THAI = "โปรดเล่าเรื่องสั้นเกี่ยวกับเด็กคนหนึ่งที่เดินไปตลาดกับคุณยาย วันนั้นฝนตกหนักมาก แต่ทั้งสองคนยังหัวเราะกันได้"
QUESTION = "Which river runs through the old town, and how many bridges cross it?"
