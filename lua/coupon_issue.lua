#!lua
-- Gives the next coupon of a campaign to a user, first come, first served.
--
-- KEYS 1 meta      hash    the partition's books
--      2 outbox    stream
--      3 record    list    the idempotency record
--      4 campaign  hash    total issued withheld skipped opens_at closes_at ...
--      5 holders   set     user ids that hold a coupon of this campaign
--      6 user      hash    the user, where user and campaign share the partition; else unused
--      7 coupons   hash    the user's coupons, likewise
-- ARGV 1 now (ms)  2 fingerprint or ''  3 record's life (ms)  4 request id  5 user id  6 coupon id
--      7 '1' where the user is at home in this partition, else '0' (then it was looked up before, and gets the coupon after)
-- Returns {'ISSUED', epoch, seq, issue_no, issued_at}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS | CLOSED_BOOKS
--      or USER_NOT_FOUND | UNKNOWN_CAMPAIGN | NOT_OPEN | ALREADY_HOLDS | OUT_OF_STOCK
-- Emits coupon_issued
--@include books
local meta, outbox, record, campaign, holders, user, coupons =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local now, fingerprint, ttl, request_id, user_id, coupon_id, at_home =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7] == '1'

local epoch, seq = open_books(meta)
if not epoch then return { 'CLOSED_BOOKS' } end
local prior = replay(record, fingerprint)
if prior then return prior end
if at_home and redis.call('EXISTS', user) == 0 then return { 'USER_NOT_FOUND' } end
local c = redis.call('HMGET', campaign, 'total', 'issued', 'opens_at', 'closes_at', 'withheld', 'skipped')
if not c[1] then return { 'UNKNOWN_CAMPAIGN' } end
local total, issued, opens_at, closes_at = tonumber(c[1]), tonumber(c[2]), tonumber(c[3]), tonumber(c[4])
if tonumber(now) < opens_at or tonumber(now) >= closes_at then return { 'NOT_OPEN' } end
if redis.call('SISMEMBER', holders, user_id) == 1 then return { 'ALREADY_HOLDS' } end
if issued + tonumber(c[5] or 0) >= total then return { 'OUT_OF_STOCK' } end
-- Places that decisions which were lost may have given out are not given out again.
local issue_no = issued + tonumber(c[6] or 0) + 1
local reply = { 'ISSUED', epoch, seq, issue_no, now }
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'coupon_issued', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'coupon', coupon_id, 'user', user_id, 'issue_no', issue_no, 'at_home', ARGV[7],
  record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', campaign, 'issued', issued + 1)
redis.call('SADD', holders, user_id)
if at_home then
  redis.call('HSET', coupons, coupon_id, string.format('%.0f', issue_no) .. '|' .. now .. '|A||')
end
return remember(record, fingerprint, ttl, reply)
