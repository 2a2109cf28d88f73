"""Lua scripts of the store: the atomic steps. For Redis >= 6.2 or Valkey on one node (keys are built inside).

`aof_pending` in an answer is the number of running syncs of the append-only file. With `appendfsync everysec` a server
keeps its log in memory while one runs, up to 2 s, and answers nevertheless; a server that is killed then loses what it
has answered. A caller that promises durability waits until none is running (`redis_client.settle`).
"""

from __future__ import annotations

_SLICE = """
local at = 0
local function take() at = at + 1; return ARGV[at] end
local function take_list()
  local n = tonumber(take()); local first = at + 1; at = at + n
  if n == 0 then return nil end
  return unpack(ARGV, first, at)
end
-- A hash is one JSON list of names and values, and the long fields with their number before them.
local function take_hash(key)
  redis.call('HSET', key, unpack(cjson.decode(take())))
  local n = tonumber(take())
  if n > 0 then redis.call('HSET', key, unpack(ARGV, at + 1, at + n)) end
  at = at + n
end
local function skip_hash() at = at + 1; local n = tonumber(take()); at = at + n end
local function publish_rest()
  while at < #ARGV do local channel = take(); redis.call('PUBLISH', channel, take()) end
end
"""

_AOF = """
local function aof_pending()
  local info = redis.pcall('INFO', 'persistence')
  if type(info) ~= 'string' then return 0 end
  return tonumber(string.match(info, 'aof_pending_bio_fsync:(%d+)') or 0)
end
"""

_ORDER = """
-- Records are kept in order by microseconds since the epoch; a new one comes after all others, whatever clocks say.
-- Lua prints large numbers with 14 digits, so they are written with a format.
local function text(place) return string.format('%.0f', place) end
local function next_place()
  local now = redis.call('TIME')
  local place = tonumber(now[1]) * 1000000 + tonumber(now[2])
  local top = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  if top[2] and tonumber(top[2]) >= place then place = tonumber(top[2]) + 1 end
  return place
end
local function add(place, task_id, status, submission_id)
  place = text(place)
  redis.call('ZADD', KEYS[1], place, task_id)
  redis.call('ZADD', KEYS[1] .. ':' .. status, place, task_id)
  if submission_id ~= '' then redis.call('ZADD', 'mloc:submission:' .. submission_id .. ':tasks', place, task_id) end
end
"""

SUBMIT = (
    _SLICE
    + _AOF
    + _ORDER
    + """
-- KEYS: tasks, journal, submission, idempotency key or ''.
-- ARGV: submission id, digest, lifetime of the key in seconds, [task ids], submission as hash,
--       then for each record: status, record as hash.
local submission_id, digest, lifetime = take(), take(), take()
if redis.call('EXISTS', KEYS[3]) == 1 then return {'ok', aof_pending()} end  -- the answer to this very call was lost
if KEYS[4] ~= '' then
  local earlier = redis.call('GET', KEYS[4])
  local known = earlier and redis.call('HGET', 'mloc:submission:' .. earlier, 'digest')
  if known and known ~= digest then return {'conflict'} end
  if known then return {'same', earlier, aof_pending()} end
end
local ids = {take_list()}
local seen, taken = {}, {}
for _, id in ipairs(ids) do
  if seen[id] or redis.call('EXISTS', 'mloc:task:' .. id) == 1 then taken[#taken + 1] = id end
  seen[id] = true
end
if #taken > 0 then return {'taken', unpack(taken)} end
take_hash(KEYS[3])
local first = next_place()
for index, id in ipairs(ids) do
  local status = take()
  take_hash('mloc:task:' .. id)
  add(first + index - 1, id, status, submission_id)
end
if KEYS[4] ~= '' then redis.call('SET', KEYS[4], submission_id, 'EX', lifetime) end
redis.call('XADD', KEYS[2], '*', 'kind', 'submit', 'submission', submission_id)
return {'ok', aof_pending()}
"""
)

CREATE = (
    _SLICE
    + _ORDER
    + """
-- KEYS: tasks, submission or ''.
-- ARGV: where there is one, submission as hash; then for each record: task id, status, submission id, place or '',
--       index, record as hash.
if KEYS[2] ~= '' then
  if redis.call('EXISTS', KEYS[2]) == 0 then take_hash(KEYS[2]) else skip_hash() end
end
local made, first = {}, next_place()
while at < #ARGV do
  local id, status, submission_id, place, index = take(), take(), take(), take(), tonumber(take())
  if redis.call('EXISTS', 'mloc:task:' .. id) == 0 then
    take_hash('mloc:task:' .. id)
    add((tonumber(place) or first) + index, id, status, submission_id)
    made[#made + 1] = id
  else
    skip_hash()
  end
end
return made
"""
)

# Equal to `states.allowed`; a test compares them. The phase numbers are those of `states.Phase`.
TRANSITION = (
    _SLICE
    + """
-- KEYS: tasks, record, tally, number of the lease or ''.
-- ARGV: task id, 'move' or 'note', attempt, phase, status, token of this call, number of the fence, [fields to return],
--       [fields to set], [fields to delete], [tally key, amount ...], then channel, message ...
local id, mode, attempt, phase, status, token, fence = take(), take(), take(), take(), take(), take(), take()
if KEYS[4] ~= '' and tonumber(redis.call('GET', KEYS[4]) or 0) > tonumber(fence) then return 'fenced' end
local wanted = {take_list()}
local old = redis.call('HMGET', KEYS[2], 'attempt', 'phase', 'status', 'step')
if not old[1] then return false end
if old[4] == token then return redis.call('HMGET', KEYS[2], unpack(wanted)) end  -- the answer to this call was lost
local old_attempt, old_phase = tonumber(old[1]), tonumber(old[2])
local new_attempt, new_phase = tonumber(attempt), tonumber(phase)
local allowed
if mode == 'note' then
  allowed = new_attempt == old_attempt and new_phase == old_phase
elseif old_phase >= 10 then
  allowed = false
elseif new_attempt ~= old_attempt then
  allowed = new_attempt > old_attempt and new_phase ~= 0
else
  allowed = new_phase > old_phase
end
if not allowed then return false end
redis.call('HSET', KEYS[2], 'attempt', attempt, 'phase', phase, 'status', status, 'step', token)
local set = {take_list()}
if #set > 0 then redis.call('HSET', KEYS[2], unpack(set)) end
local gone = {take_list()}
if #gone > 0 then redis.call('HDEL', KEYS[2], unpack(gone)) end
if status ~= old[3] then
  local place = redis.call('ZSCORE', KEYS[1], id)
  redis.call('ZREM', KEYS[1] .. ':' .. old[3], id)
  if place then redis.call('ZADD', KEYS[1] .. ':' .. status, place, id) end
end
local sums = {take_list()}
for i = 1, #sums, 2 do redis.call('HINCRBYFLOAT', KEYS[3], sums[i], sums[i + 1]) end
publish_rest()
return redis.call('HMGET', KEYS[2], unpack(wanted))
"""
)

NEXT_IDS = """
-- KEYS: tasks, index. ARGV: task id or '', number, '1' = newest first.
local after, count, down = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local range = down and 'ZREVRANGE' or 'ZRANGE'
local rank, start = false, 0
if after ~= '' then rank = redis.call(down and 'ZREVRANK' or 'ZRANK', KEYS[2], after) end
if rank then
  start = rank + 1
elseif after ~= '' then  -- it has left this index since: begin where it would stand
  local place = redis.call('ZSCORE', KEYS[1], after)
  if not place then return {} end
  start = redis.call('ZCOUNT', KEYS[2], '-inf', '(' .. place)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], place, place)) do
    if id < after then start = start + 1 end
  end
  if down then start = redis.call('ZCARD', KEYS[2]) - start end
end
return redis.call(range, KEYS[2], start, start + count - 1)
"""

CANCEL = (
    _AOF
    + """
-- KEYS: journal, submission. ARGV: submission id, task id or ''.
local known = redis.call('EXISTS', KEYS[2]) == 1
if ARGV[2] == '' and known then redis.call('HSET', KEYS[2], 'cancelled', '1') end
local entry = {'kind', 'cancel', 'submission', ARGV[1]}
if ARGV[2] ~= '' then entry[5] = 'task'; entry[6] = ARGV[2] end
return {redis.call('XADD', KEYS[1], '*', unpack(entry)), aof_pending()}
"""
)

PENDING_SYNCS = _AOF + "return aof_pending()"

SET_IF_THERE = """
-- KEYS: hash. ARGV: field, value.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""

ACQUIRE = """
-- KEYS: lease, its number. ARGV: holder, milliseconds.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return false end
if holder then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return tonumber(redis.call('GET', KEYS[2]) or 0)
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return redis.call('INCR', KEYS[2])
"""

RELEASE = """
-- KEYS: lease. ARGV: holder.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

TOUCH_WORKER = (
    _SLICE
    + """
-- KEYS: worker, its heartbeat. ARGV: time, milliseconds or '', [fields], then channel, message ...
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local now, lifetime = take(), take()
redis.call('HSET', KEYS[1], take_list())
if lifetime ~= '' then redis.call('SET', KEYS[2], now, 'PX', lifetime) end
publish_rest()
return 1
"""
)

REMOVE_WORKER = (
    _SLICE
    + """
-- KEYS: worker ids, worker, its heartbeat, ids that get no work.
-- ARGV: worker id, '1' = only when stale, then channel, message ...
local id, only_stale = take(), take()
if only_stale == '1' and redis.call('PTTL', KEYS[3]) > 0 then return 0 end
local there = redis.call('DEL', KEYS[2]) + redis.call('SREM', KEYS[1], id)
redis.call('DEL', KEYS[3])
redis.call('SREM', KEYS[4], id)
if there > 0 then publish_rest() end
return there
"""
)
