#!lua
-- Creates a coupon campaign; leaves one that exists as it is.
--
-- KEYS 1 meta       hash    partition state
--      2 outbox     stream
--      3 record     list    idempotency record
--      4 campaign   hash    code type amount total issued opens_at closes_at expires_at, and conditions if there are any
--      5 campaigns  zset    coupon id by the end of its window (ms)
-- ARGV 1 now (ms) in tests, else ''  2 fingerprint or ''  3 life of a record (ms)  4 request id  5 coupon id  6 code
--      7 PERCENTAGE | FIXED  8 percent or won  9 number of coupons  10 first instant of the window (ms), '' for now
--      11 first instant after the window (ms)  12 when the coupons expire (ms)
--      13 conditions of an order or '': least total and most discount (won), products, categories, separated by '|'; an empty part is
--        no condition
-- Returns {'CREATED', epoch, seq, first instant of the window}
--      or {'REPLAYED', ...that, or the reply of campaign_update} | KEY_REUSED | IN_PROGRESS
--      or ALREADY_EXISTS | PARTITION_CLOSED
--      or INVALID_WINDOW (it is empty, or ends after the coupons expire)
-- Emits campaign_created
--@include lists
--@include partition
--@include idempotency
local meta, outbox, record, campaign, campaigns = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now, fingerprint, ttl, request_id, coupon_id, code, kind, amount, total, opens_at, closes_at, expires_at, conditions =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11], ARGV[12],
  ARGV[13]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local prior = replay(record, fingerprint)
if prior then return prior end
if redis.call('EXISTS', campaign) == 1 then return { 'ALREADY_EXISTS' } end
if opens_at == '' then opens_at = now end
if tonumber(opens_at) >= tonumber(closes_at) or tonumber(closes_at) > tonumber(expires_at) then return { 'INVALID_WINDOW' } end
local reply = { 'CREATED', epoch, seq, opens_at }
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'campaign_created', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'coupon', coupon_id, 'code', code, 'type', kind, 'amount', amount, 'total', total,
  'opens_at', opens_at, 'closes_at', closes_at, 'expires_at', expires_at, 'conditions', conditions,
  record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', campaign, 'code', code, 'type', kind, 'amount', amount, 'total', total, 'issued', 0,
  'opens_at', opens_at, 'closes_at', closes_at, 'expires_at', expires_at)
if conditions ~= '' then redis.call('HSET', campaign, 'conditions', conditions) end
redis.call('ZADD', campaigns, closes_at, coupon_id)
return remember(record, fingerprint, ttl, reply)
