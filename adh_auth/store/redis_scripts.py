"""The operations on a session in Redis: each one script over one hash, with the server's own clock.

Each script writes with one command at most, so that a full memory changes all of it or nothing. "" stands for
None: neither a pair nor a record is ever empty.
"""

from __future__ import annotations

__all__ = ["GET", "HEAL", "NOTE", "PUT", "RELEASE", "TAKE"]

_NOW = """\
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
"""

#: Returns the row, or nil
GET = (
    _NOW
    + """\
local row = redis.call('HMGET', KEYS[1],
  'version', 'generation', 'stamp', 'pair', 'record', 'holder', 'lease_until')
if not row[1] then return false end
row[7] = string.format('%.6f', row[7] - now)
return row
"""
)

#: version, me, seconds
TAKE = (
    _NOW
    + """\
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', ARGV[1] + 1), 'holder', ARGV[2],
  'lease_until', string.format('%.6f', now + ARGV[3]))
return 1
"""
)

#: me, record, seconds
NOTE = (
    _NOW
    + """\
local row = redis.call('HMGET', KEYS[1], 'version', 'holder')
if row[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', row[1] + 1), 'record', ARGV[2],
  'lease_until', string.format('%.6f', now + ARGV[3]))
return 1
"""
)

#: the generation that was spent or "", stamp, pair, record
PUT = (
    _NOW
    + """\
local row = redis.call('HMGET', KEYS[1], 'version', 'generation')
local generation = (row[2] or 0) + 1
if ARGV[1] == '' then
  generation = math.max(generation, math.floor(now * 1000))
elseif row[2] ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', (row[1] or 0) + 1),
  'generation', string.format('%.0f', generation), 'stamp', ARGV[2], 'pair', ARGV[3], 'record', ARGV[4],
  'holder', '', 'lease_until', '0')
return 1
"""
)

#: version or "", pair, stamp, generation
HEAL = """\
local row = redis.call('HMGET', KEYS[1], 'version', 'record')
if (row[1] or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', (row[1] or 0) + 1), 'generation', ARGV[4],
  'stamp', ARGV[3], 'pair', ARGV[2], 'record', row[2] or '', 'holder', '', 'lease_until', '0')
return 1
"""

#: me
RELEASE = """\
local row = redis.call('HMGET', KEYS[1], 'version', 'holder')
if row[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', row[1] + 1), 'holder', '', 'lease_until', '0')
return 1
"""
