-- Only what the writer is meant to call. Functions are executable by everybody unless that is taken away.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA ledger FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger.visible(text) TO ledger_reader, ledger_writer;
GRANT EXECUTE ON FUNCTION ledger.today() TO ledger_reader, ledger_writer;
GRANT SELECT ON ledger.sealed_transaction, ledger.sealed_entry TO ledger_reader;
GRANT EXECUTE ON FUNCTION ledger.read_journal TO ledger_reader;
-- For these views and for the audit: they compute, and read nothing.
GRANT EXECUTE ON FUNCTION ledger.entry_commitment, ledger.detail_commitment TO ledger_reader;
GRANT EXECUTE ON FUNCTION
    ledger.post_charges, ledger.grant_credits, ledger.collect, ledger.set_credit_limit,
    ledger.correct_charge, ledger.write_off_charge, ledger.write_off_chargebacks, ledger.write_off_clawback,
    ledger.propose_adjustment, ledger.approve_adjustment, ledger.reject_adjustment,
    ledger.debit_payout, ledger.complete_payout, ledger.return_payout, ledger.reverse_payout,
    ledger.reverse_purchase, ledger.reinstate_purchase, ledger.record_processor_fee,
    ledger.freeze_payouts, ledger.freeze_customer,
    ledger.fold, ledger.sequence,
    ledger.allocate_lots, ledger.refresh_lots, ledger.expire_lots, ledger.settle_promotions,
    ledger.begin_log, ledger.hash_leaves, ledger.store_checkpoint, ledger.erase_salt,
    ledger.open_lease, ledger.renew_leases, ledger.return_lease, ledger.recall_lease,
    ledger.place_holds, ledger.release_reservations,
    ledger.reap_leases, ledger.reap_holds, ledger.forget_ended
TO ledger_writer;
