#!lua
-- Issues the next coupons of a campaign to users, first come, first served. Decides a batch of requests in their order.
--
-- KEYS 1 meta      hash    partition state
--      2 outbox    stream
--      3 campaign  hash    total issued withheld skipped opens_at closes_at ...
--      4 holders   set     ids of the users that have a coupon of this campaign
--      then of each request
--        record    list    idempotency record
--        coupons   hash    by coupon id, the coupons of the user: the user where this partition owns it, else what its campaigns
--                          issued
-- ARGV 1 now (ms) in tests, else ''  2 life of a record (ms)  3 coupon id
--      then of each request: fingerprint or '', request id, user id, '1' where this partition owns the user, else '0' (the
--        caller has checked that the user exists)
-- Returns of each request, packed, {'ISSUED', epoch, seq, issue_no, issued_at}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS
--      or USER_NOT_FOUND | CAMPAIGN_NOT_FOUND | NOT_OPEN | ALREADY_HOLDS | OUT_OF_STOCK
--      of the whole batch PARTITION_CLOSED
-- Emits coupon_issued for each
--@include lists
--@include partition
--@include idempotency
--@include batch
local meta, outbox, campaign, holders = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, ttl, coupon_id = current_time(ARGV[1]), ARGV[2], ARGV[3]
local n = (#KEYS - 4) / 2

local epoch, seq, forgotten = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local c = redis.call('HMGET', campaign, 'total', 'issued', 'opens_at', 'closes_at', 'withheld', 'skipped')
local total, issued, opens_at, closes_at = tonumber(c[1]), tonumber(c[2]), tonumber(c[3]), tonumber(c[4])
local withheld, skipped = tonumber(c[5] or 0), tonumber(c[6] or 0)
local open = total and tonumber(now) >= opens_at and tonumber(now) < closes_at

local ids, owned_users = {}, {}
for i = 1, n do
  ids[i] = ARGV[4 * i + 2]
  if ARGV[4 * i + 3] == '1' then owned_users[#owned_users + 1] = KEYS[2 * i + 4] end
end
-- A user that was forgotten has no name.
local all_exist = not forgotten and count_existing(owned_users) == #owned_users
local holds = read_in_chunks('SMISMEMBER', holders, ids)

local records, replies, events = new_records(), {}, {}
-- The users that get a coupon: as a set, as a list, and the records of their coupons.
local given, winners, coupons = {}, {}, {}
for i = 1, n do
  local record, coupons_of = KEYS[2 * i + 3], KEYS[2 * i + 4]
  local fingerprint, request_id, user_id, owned = unpack(ARGV, 4 * i, 4 * i + 3)
  local reply = records.replay(record, fingerprint)
  if reply then
    -- A replay.
  elseif owned == '1' and not all_exist and redis.call('HEXISTS', coupons_of, 'name') == 0 then
    reply = 'USER_NOT_FOUND'
  elseif not total then
    reply = 'CAMPAIGN_NOT_FOUND'
  elseif not open then
    reply = 'NOT_OPEN'
  elseif holds[i] == 1 or given[user_id] then
    reply = 'ALREADY_HOLDS'
  elseif issued + withheld >= total then
    reply = 'OUT_OF_STOCK'
  else
    issued = issued + 1
    -- Skips the places that lost decisions may have issued.
    local number, issue_no = whole(seq), whole(issued + skipped)
    reply = 'ISSUED' .. SEPARATOR .. epoch .. SEPARATOR .. number .. SEPARATOR .. issue_no .. SEPARATOR .. now
    records.file(record, fingerprint, reply)
    given[user_id] = true
    winners[#winners + 1] = user_id
    coupons[#coupons + 1] = { coupons_of, issue_no .. '|' .. now .. '|A||' }
    events[#events + 1] = with_record(
      'coupon_issued' .. SEPARATOR .. number .. SEPARATOR .. now .. SEPARATOR .. request_id .. SEPARATOR .. coupon_id
        .. SEPARATOR .. user_id .. SEPARATOR .. issue_no .. SEPARATOR .. owned,
      record, fingerprint, reply)
    seq = seq + 1
  end
  replies[i] = reply
end
if #events == 0 then return replies end
---- checks above, writes below -------------------------------------------------------------------------------------
emit(outbox, epoch, events)
redis.call('HSET', meta, 'seq', whole(seq - 1))
redis.call('HSET', campaign, 'issued', whole(issued))
write_in_chunks('SADD', holders, winners)
for i = 1, #coupons do redis.call('HSET', coupons[i][1], coupon_id, coupons[i][2]) end
records.write(ttl)
return replies
