#!lua name=tallystick_VERSION

-- Pools: bounded amounts inside which reservations are allocated. VERSION is replaced by a hash of this text when
-- it is loaded, so processes of several versions find each their own functions.
--
-- A pool is three keys, all with its owner as hash tag:
--   pool:NAME      hash    what FLAGS and NUMBERS below say
--   amounts:NAME   hash    open reservation -> amount
--   expiries:NAME  zset    open reservation -> when it expires
-- and a reservation has one record for all its pools, which outlives it, so that a retry hears the first answer:
--   reservation:ID hash    state (open, refused, or how it ended) and what else that answer says
--
-- Invariants:
--   reserved = the sum of amounts; every member of amounts is in expiries, and the other way round
--   lease:   free = remaining - returning - reserved      counter: free = limit - spent - reserved
--   free may be negative, when remaining fell below what was promised: then nothing is granted
--   remaining changes only together with a higher version of the same epoch, spent only rises: replays never add
--   sequence rises with every change, so that who sees it fall within an epoch knows that the pool is an old copy
--
-- Amounts are micros up to 10^15 and times are microseconds: below 2^53, so Lua's numbers hold them exactly.
-- tostring would write them as 1e+15: only `text` writes numbers.

local FLAGS = {'kind', 'run_id', 'return_id'}
local NUMBERS = {
  'epoch', 'version', 'remaining', 'returning', 'expire', 'keep', 'spent', 'reserved', 'sequence', 'gone_at',
}
local FIELDS = {
  FLAGS[1], FLAGS[2], FLAGS[3],
  NUMBERS[1], NUMBERS[2], NUMBERS[3], NUMBERS[4], NUMBERS[5], NUMBERS[6], NUMBERS[7], NUMBERS[8], NUMBERS[9],
  NUMBERS[10],
}
local RECORD = {
  'state', 'run_id', 'content', 'token', 'amount', 'expire', 'use', 'room', 'spent', 'reserved',
}

local SECOND = 1000000
-- How long after its last purpose a key stays.
local LEASE_KEEP = 3600 * SECOND
local RECORD_KEEP = 900 * SECOND
-- How much one call cleans up on the way: bounded, because everybody waits meanwhile.
local SWEEP_LIMIT = 100

-- Of this server process. A restart and a promoted replica are other processes, where this is unset at first: so
-- a pool that says another one was restored from a copy, and what the original granted since is not in it.
local run_id

local function current_run_id()
  if not run_id then
    run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  end
  return run_id
end

local function text(number)
  return string.format('%.0f', number)
end

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * SECOND + tonumber(time[2])
end

local function expire_at(key, time)
  redis.call('PEXPIREAT', key, text(math.ceil(time / 1000)))
end

-- Pools

local function read_pool(keys, first)
  local pool = {key = keys[first], amounts = keys[first + 1], expiries = keys[first + 2], changes = {}}
  local values = redis.call('HMGET', pool.key, unpack(FIELDS))
  if not values[1] then
    return nil
  end
  for i, field in ipairs(FLAGS) do
    pool[field] = values[i] or ''
  end
  for i, field in ipairs(NUMBERS) do
    pool[field] = tonumber(values[#FLAGS + i] or 0)
  end
  return pool
end

local function new_pool(keys, first, kind)
  local pool = {key = keys[first], amounts = keys[first + 1], expiries = keys[first + 2], changes = {}, kind = kind}
  for _, field in ipairs(NUMBERS) do
    pool[field] = 0
  end
  return pool
end

local function change(pool, field, value)
  pool[field] = value
  pool.changes[#pool.changes + 1] = field
  pool.changes[#pool.changes + 1] = type(value) == 'number' and text(value) or value
end

-- Writes what changed; nothing when nothing did.
local function save(pool, time)
  if #pool.changes == 0 then
    return
  end
  change(pool, 'sequence', pool.sequence + 1)
  local gone_at = pool.kind == 'lease' and pool.expire + LEASE_KEEP or time + pool.keep
  -- A counter's every use would move its time by a little: that is not worth three calls each.
  local slack = pool.kind == 'lease' and 0 or pool.keep / 40
  local moves = pool.has_new_keys or gone_at > pool.gone_at + slack
  if moves then
    change(pool, 'gone_at', gone_at)
  end
  redis.call('HSET', pool.key, unpack(pool.changes))
  pool.changes = {}
  if moves then
    expire_at(pool.key, gone_at)
    expire_at(pool.amounts, gone_at)
    expire_at(pool.expiries, gone_at)
    pool.has_new_keys = false
  end
end

local function is_stale(pool)
  return pool.run_id ~= current_run_id()
end

-- What can still be reserved; of a counter only its user knows the limit.
local function free(pool, limit)
  if pool.kind == 'lease' then
    return pool.remaining - pool.returning - pool.reserved
  end
  return limit and limit - pool.spent - pool.reserved
end

local function held(pool, id)
  local amount = redis.call('HGET', pool.amounts, id)
  return amount and tonumber(amount)
end

-- Never lowers an amount and never shortens a time: a late or repeated call changes nothing. `before` is what the
-- pool holds for it.
local function put(pool, id, amount, expire, before)
  if pool.reserved == 0 then
    -- Only then can amounts and expiries be empty, which Redis does not keep.
    pool.has_new_keys = true
  end
  if not before or amount > before then
    redis.call('HSET', pool.amounts, id, text(amount))
    change(pool, 'reserved', pool.reserved + amount - (before or 0))
  end
  if redis.call('ZADD', pool.expiries, 'GT', 'CH', text(expire), id) == 1 then
    change(pool, 'reserved', pool.reserved)
  end
end

local function remove(pool, id)
  local amount = held(pool, id)
  if amount then
    redis.call('HDEL', pool.amounts, id)
    redis.call('ZREM', pool.expiries, id)
    change(pool, 'reserved', pool.reserved - amount)
  end
end

local function clear(pool)
  redis.call('UNLINK', pool.amounts, pool.expiries)
  pool.has_new_keys = true
  change(pool, 'reserved', 0)
end

local function total(pool, ids)
  local sum = 0
  for first = 1, #ids, 1000 do
    local part = redis.call('HMGET', pool.amounts, unpack(ids, first, math.min(first + 999, #ids)))
    for _, amount in ipairs(part) do
      sum = sum + tonumber(amount or 0)
    end
  end
  return sum
end

-- Takes out reservations whose time and grace are over; answers how many.
local function sweep(pool, time, grace, limit)
  local ids = redis.call(
    'ZRANGEBYSCORE', pool.expiries, '-inf', '(' .. text(time - grace), 'LIMIT', 0, limit or SWEEP_LIMIT
  )
  if #ids > 0 then
    local sum = total(pool, ids)
    redis.call('HDEL', pool.amounts, unpack(ids))
    redis.call('ZREM', pool.expiries, unpack(ids))
    change(pool, 'reserved', pool.reserved - sum)
  end
  return #ids
end

-- The newer of two states of one epoch. What a later epoch left behind says nothing about this one.
local function merge_lease(pool, epoch, version, remaining, expire)
  if pool.kind ~= 'lease' or pool.epoch ~= epoch then
    return
  end
  if version > pool.version then
    change(pool, 'version', version)
    change(pool, 'remaining', remaining)
  end
  if expire > pool.expire then
    change(pool, 'expire', expire)
  end
end

local function merge_counter(pool, spent)
  if pool.kind == 'counter' and spent > pool.spent then
    change(pool, 'spent', spent)
  end
end

-- An update is five arguments: kind, then epoch, version, remaining, expire; or spent and three unused ones. The
-- second is empty when there is nothing to merge.
local function merge_update(pool, args, first)
  if args[first + 1] == '' then
    return
  end
  if args[first] == 'lease' then
    merge_lease(
      pool, tonumber(args[first + 1]), tonumber(args[first + 2]), tonumber(args[first + 3]), tonumber(args[first + 4])
    )
  else
    merge_counter(pool, tonumber(args[first + 1]))
  end
end

-- Uses: the pools that one call allocates in

-- keys: the record, then three per use. args from `first`: per use its kind, and epoch or limit.
local function read_uses(keys, args, first)
  local uses = {}
  for i = 0, (#keys - 1) / 3 - 1 do
    local kind, bound = args[first + 2 * i], tonumber(args[first + 2 * i + 1])
    uses[i + 1] = {
      pool = read_pool(keys, 2 + 3 * i),
      kind = kind,
      epoch = kind == 'lease' and bound,
      limit = kind == 'counter' and bound,
    }
  end
  return uses
end

-- Every answer ends with what is free in the first pool, and its sequence; false where there is no such pool.
local function answer(uses, ...)
  local reply = {...}
  local first = uses[1].pool
  reply[#reply + 1] = first and free(first, uses[1].limit) or false
  reply[#reply + 1] = first and first.sequence or false
  return reply
end

-- Why a pool cannot be used at all, as an answer; nil when all can. Sweeps them on the way.
local function unusable(uses, expire, time, grace)
  for i, use in ipairs(uses) do
    local pool = use.pool
    if not pool then
      return answer(uses, 'missing', i - 1)
    end
    if pool.kind ~= use.kind then
      return redis.error_reply('KIND the pool is a ' .. pool.kind)
    end
    if is_stale(pool) then
      return answer(uses, 'stale', i - 1)
    end
    if use.epoch and use.epoch ~= pool.epoch then
      return answer(uses, 'superseded', i - 1, pool.epoch)
    end
    sweep(pool, time, grace)
    save(pool, time)
    -- Past its lease nothing would stand for the reservation.
    if use.epoch and expire > pool.expire then
      return answer(uses, 'outlives', i - 1, pool.expire)
    end
  end
end

-- The first use without room to bring the reservation up to `amount`, and its room; nil when all have it. Each use
-- then knows what it held before.
local function without_room(uses, id, amount)
  for i, use in ipairs(uses) do
    use.before = held(use.pool, id)
    local before = use.before
    local room = free(use.pool, use.limit)
    if (not before or amount > before) and amount - (before or 0) > room then
      return i, room
    end
  end
end

-- Records

local function read_record(key, time, grace)
  local values = redis.call('HMGET', key, unpack(RECORD))
  if not values[1] then
    return nil
  end
  local record = {}
  for i, field in ipairs(RECORD) do
    record[field] = values[i] or ''
  end
  if record.state == 'open' then
    -- In a copy, an open reservation may long have ended, and its pools are begun anew.
    if record.run_id ~= current_run_id() then
      return nil
    end
    -- Swept from its pools, or about to be.
    if tonumber(record.expire) + grace < time then
      record.state = 'expired'
    end
  end
  return record
end

local function write_record(key, expire, grace, ...)
  redis.call('HSET', key, 'run_id', current_run_id(), 'expire', text(expire), ...)
  expire_at(key, expire + grace + RECORD_KEEP)
end

-- What the first call with this id was answered, in the form of an answer; nil when there was none.
local function first_answer(uses, record, content)
  if not record then
    return nil
  end
  -- Who ended an unknown reservation did not know its content.
  if record.content ~= '' and record.content ~= content then
    return answer(uses, 'reused')
  end
  if record.state == 'open' then
    return answer(uses, 'reserved', 1, record.token, tonumber(record.amount), tonumber(record.expire))
  end
  if record.state == 'refused' then
    return answer(
      uses, 'refused', 1, tonumber(record.use), tonumber(record.room), tonumber(record.spent),
      tonumber(record.reserved)
    )
  end
  return answer(uses, 'ended', record.state, record.token)
end

-- Functions. The first argument is always the grace.

-- args: grace, id, amount, expire, content, token, freeze, uses
local function reserve(keys, args)
  local time, grace = now(), tonumber(args[1])
  local id, amount, expire = args[2], tonumber(args[3]), tonumber(args[4])
  local uses = read_uses(keys, args, 8)
  -- First of all: a retry hears what it heard before even if the pool has gone on since.
  local known = first_answer(uses, read_record(keys[1], time, grace), args[5])
  if known then
    return known
  end
  local problem = unusable(uses, expire, time, grace)
  if problem then
    return problem
  end
  local i, room = without_room(uses, id, amount)
  if i then
    local spent, reserved = uses[i].pool.spent, uses[i].pool.reserved
    if args[7] == '1' then
      write_record(
        keys[1], expire, grace, 'state', 'refused', 'content', args[5], 'use', text(i - 1), 'room', text(room),
        'spent', text(spent), 'reserved', text(reserved)
      )
    end
    return answer(uses, 'refused', 0, i - 1, room, spent, reserved)
  end
  -- All have room: nothing below can fail, so it is all of them or none.
  for _, use in ipairs(uses) do
    put(use.pool, id, amount, expire, use.before)
    save(use.pool, time)
  end
  write_record(
    keys[1], expire, grace, 'state', 'open', 'content', args[5], 'token', args[6], 'amount', text(amount)
  )
  return answer(uses, 'reserved', 0, args[6], amount, expire)
end

-- args: grace, id, amount, expire, token, uses
local function extend(keys, args)
  local time, grace = now(), tonumber(args[1])
  local id, amount, expire, token = args[2], tonumber(args[3]), tonumber(args[4]), args[5]
  local uses = read_uses(keys, args, 6)
  local record = read_record(keys[1], time, grace)
  if record and record.state ~= 'open' then
    return answer(uses, 'ended', record.state, record.token)
  end
  local problem = unusable(uses, expire, time, grace)
  if problem then
    return problem
  end
  if not record then
    return answer(uses, 'ended', 'unknown', '')
  end
  local amount_before, expire_before = tonumber(record.amount), tonumber(record.expire)
  if amount <= amount_before and expire <= expire_before then
    return answer(uses, 'reserved', 1, record.token, amount_before, expire_before)
  end
  amount, expire = math.max(amount, amount_before), math.max(expire, expire_before)
  local i, room = without_room(uses, id, amount)
  if i then
    return answer(uses, 'refused', 0, i - 1, room, uses[i].pool.spent, uses[i].pool.reserved)
  end
  for _, use in ipairs(uses) do
    put(use.pool, id, amount, expire, use.before)
    save(use.pool, time)
  end
  write_record(keys[1], expire, grace, 'token', token, 'amount', text(amount))
  return answer(uses, 'reserved', 0, token, amount, expire)
end

-- args: grace, id, state, token, expire, updates
local function end_reservation(keys, args)
  local time, grace = now(), tonumber(args[1])
  local id, state, token = args[2], args[3], args[4]
  local record = read_record(keys[1], time, grace)
  local known, open = record ~= nil, record ~= nil and record.state == 'open'
  local ended = known and not open and record.state ~= 'refused'
  -- A hold of an earlier try, of which Redis hears only now: it is over before this reservation, which goes on then.
  local outlived = state == 'durable' and open and tonumber(record.expire) > tonumber(args[5])
  local first
  for i = 0, (#keys - 1) / 3 - 1 do
    local pool = read_pool(keys, 2 + 3 * i)
    if pool then
      if not outlived then
        -- Of whatever epoch: whoever ends a reservation has ended it everywhere.
        remove(pool, id)
      end
      merge_update(pool, args, 6 + 5 * i)
      sweep(pool, time, grace)
      save(pool, time)
    end
    if i == 0 then
      first = pool
    end
  end
  if ended or outlived then
    -- There is one end, and the first to be told here stays.
    state, token = record.state, record.token
  else
    -- Also of an unknown one: should its reserve() arrive later, it comes too late.
    local expire = math.max(tonumber(args[5]), known and tonumber(record.expire) or 0)
    write_record(keys[1], expire, grace, 'state', state, 'token', token)
  end
  local room, sequence = first and free(first) or false, first and first.sequence or false
  return {known and 1 or 0, open and 1 or 0, state, token, room, sequence}
end

-- args: grace, epoch, version, remaining, expire. Answers whether it did, and the sequence.
local function install(keys, args)
  local time, epoch = now(), tonumber(args[2])
  local pool = read_pool(keys, 1)
  if pool and pool.kind ~= 'lease' then
    return redis.error_reply('KIND the pool is a ' .. pool.kind)
  end
  -- An epoch is installed once: a second time, its reservations would be forgotten and their amounts given again.
  if pool and pool.epoch >= epoch then
    return {0, pool.sequence}
  end
  pool = pool or new_pool(keys, 1, 'lease')
  clear(pool)
  change(pool, 'kind', 'lease')
  change(pool, 'run_id', current_run_id())
  change(pool, 'epoch', epoch)
  change(pool, 'version', tonumber(args[3]))
  change(pool, 'remaining', tonumber(args[4]))
  change(pool, 'expire', tonumber(args[5]))
  change(pool, 'returning', 0)
  change(pool, 'return_id', '')
  save(pool, time)
  return {1, pool.sequence}
end

-- args: grace, spent, keep, then id, amount, expire of each open reservation. Answers the sequence.
local function seed(keys, args)
  local time = now()
  local pool = read_pool(keys, 1) or new_pool(keys, 1, 'counter')
  if pool.kind ~= 'counter' then
    return redis.error_reply('KIND the pool is a ' .. pool.kind)
  end
  if pool.run_id ~= current_run_id() then
    -- New, or an old copy: of that, only what was spent is sure to have been so.
    clear(pool)
    change(pool, 'kind', 'counter')
    change(pool, 'run_id', current_run_id())
  end
  if tonumber(args[3]) > pool.keep then
    change(pool, 'keep', tonumber(args[3]))
  end
  merge_counter(pool, tonumber(args[2]))
  for i = 4, #args, 3 do
    put(pool, args[i], tonumber(args[i + 1]), tonumber(args[i + 2]), held(pool, args[i]))
  end
  sweep(pool, time, tonumber(args[1]))
  save(pool, time)
  return pool.sequence
end

-- args: grace, update. Answers what is free and the sequence; nothing when there is no such pool.
local function merge(keys, args)
  local pool = read_pool(keys, 1)
  if not pool then
    return false
  end
  local time = now()
  merge_update(pool, args, 2)
  sweep(pool, time, tonumber(args[1]))
  save(pool, time)
  return {free(pool) or false, pool.sequence}
end

-- args: grace, epoch, return_id, amount. Answers the return under way and its amount; nothing when there is none.
local function withdraw(keys, args)
  local pool = read_pool(keys, 1)
  if not pool or pool.kind ~= 'lease' or is_stale(pool) or pool.epoch ~= tonumber(args[2]) then
    return false
  end
  local time = now()
  sweep(pool, time, tonumber(args[1]))
  -- One at a time: the ledger counts each id once, and here its amount is known until it has.
  if pool.returning == 0 then
    local amount = math.min(tonumber(args[4]), free(pool))
    if amount > 0 then
      change(pool, 'return_id', args[3])
      change(pool, 'returning', amount)
    end
  end
  save(pool, time)
  return pool.returning > 0 and {pool.return_id, pool.returning}
end

-- args: grace, return_id, update. Answers whether that return was under way.
local function returned(keys, args)
  local pool = read_pool(keys, 1)
  if not pool then
    return 0
  end
  local time = now()
  local matches = pool.returning > 0 and pool.return_id == args[2]
  -- In one step with the lower `remaining`: in between, the returned amount would be free again.
  merge_update(pool, args, 3)
  if matches then
    change(pool, 'returning', 0)
    change(pool, 'return_id', '')
  end
  sweep(pool, time, tonumber(args[1]))
  save(pool, time)
  return matches and 1 or 0
end

-- args: grace, limit. Answers how many were swept.
local function sweep_pool(keys, args)
  local pool = read_pool(keys, 1)
  if not pool then
    return 0
  end
  local time = now()
  local swept = sweep(pool, time, tonumber(args[1]), tonumber(args[2]))
  save(pool, time)
  return swept
end

-- args: grace. Answers the pool as the next change would find it; nothing when there is no such pool.
local function peek(keys, args)
  local pool = read_pool(keys, 1)
  if not pool then
    return false
  end
  local ids = redis.call('ZRANGEBYSCORE', pool.expiries, '-inf', '(' .. text(now() - tonumber(args[1])))
  local expired = total(pool, ids)
  pool.reserved = pool.reserved - expired
  return {
    pool.kind, is_stale(pool) and 1 or 0, pool.epoch, pool.version, pool.remaining, pool.expire, pool.returning,
    pool.return_id, pool.spent, pool.reserved, free(pool) or false,
    redis.call('ZCARD', pool.expiries) - #ids, expired, pool.sequence,
  }
end

-- args: grace, limit, expire and id after which to begin. Answers id, amount, expire of each.
local function list(keys, args)
  local pool = read_pool(keys, 1)
  if not pool then
    return {}
  end
  local limit, after_expire, after_id = tonumber(args[2]), tonumber(args[3]), args[4]
  local found, offset = {}, 0
  while #found < 3 * limit do
    local page = redis.call(
      'ZRANGEBYSCORE', pool.expiries, text(after_expire), '+inf', 'WITHSCORES', 'LIMIT', offset, limit
    )
    for i = 1, #page, 2 do
      local id, expire = page[i], tonumber(page[i + 1])
      if #found < 3 * limit and (expire > after_expire or id > after_id) then
        found[#found + 1] = id
        found[#found + 1] = held(pool, id) or 0
        found[#found + 1] = expire
      end
    end
    if #page < 2 * limit then
      break
    end
    offset = offset + limit
  end
  return found
end

redis.register_function('tallystick_VERSION_reserve', reserve)
redis.register_function('tallystick_VERSION_extend', extend)
redis.register_function('tallystick_VERSION_end', end_reservation)
redis.register_function('tallystick_VERSION_install', install)
redis.register_function('tallystick_VERSION_seed', seed)
redis.register_function('tallystick_VERSION_merge', merge)
redis.register_function('tallystick_VERSION_withdraw', withdraw)
redis.register_function('tallystick_VERSION_returned', returned)
redis.register_function('tallystick_VERSION_sweep', sweep_pool)
redis.register_function{function_name = 'tallystick_VERSION_peek', callback = peek, flags = {'no-writes'}}
redis.register_function{function_name = 'tallystick_VERSION_list', callback = list, flags = {'no-writes'}}
